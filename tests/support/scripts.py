"""What the scripted model says in tests of the server: the last line of the last user turn decides."""

from __future__ import annotations

CALL = (
    "I need the time.\n</think>\n\nLet me look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
    'Genève "élan"\n</parameter>\n</function>\n</tool_call>'
)
TWO_CALLS = (
    "Two.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n"
    "</tool_call>\n<tool_call>\n<function=edit>\n<parameter=path>\na.py\n</parameter>\n<parameter=line>\n7\n"
    "</parameter>\n</function>\n</tool_call>"
)
ANSWERS = {
    "call": CALL,
    "two calls": TWO_CALLS,
    "hello": "They greet.\n</think>\n\nHello — 你好 😀!",
    "json": 'Short.\n</think>\n\n{"title": "A title"}',
    "long": "Hm.\n</think>\n\n" + " ".join(f"word{i}" for i in range(60)),
    "broken": "Hm.\n</think>\n\n<tool_call>\nnonsense\n</tool_call>",
    "unknown tool": "Hm.\n</think>\n\n<tool_call>\n<function=nope>\n</function>\n</tool_call>",
}


def answer(prompt: str) -> str:
    """The scripted answer to a prompt."""
    head, _, opening = prompt.rpartition("<|im_start|>assistant\n")
    if not head:
        return f" and so on after {prompt[-12:]}"
    # an instruction of the server's own may follow the user's turn
    user = head.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0].strip()
    text = ANSWERS.get(user.rpartition("\n")[2])
    if text is None:
        text = f"About {len(user)} characters.\n</think>\n\nYou said: {user[-60:]}"
    if "</think>" in opening:
        return text.partition("</think>\n\n")[2]
    return text
