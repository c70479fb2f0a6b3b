"""Requests to prompts and tokens to events: tokenizer, template, incremental parser, tool calls, presets.

    chat = ChatFormat.load(checkpoint_dir)            # format.py: tokenizer.json + chat_template.jinja
    prompt = chat.render(request)                     # RenderedPrompt: token_ids, text, turn_starts, media
    parser = chat.parser(request)                     # stream_parser.py, one per answer
    events = parser.feed(token_id)                    # list[ChatEvent]; feed_text(text) where there are no ids
    events = parser.finish(finish_reason, usage)      # the rest, last of all End with the whole Message
    request = get_preset("agent").apply(request)      # presets.py

``messages`` holds the request and the events, ``normalise.parse_arguments`` reads tool arguments as clients send them.
This package knows neither the engine nor any protocol.
"""
