"""Scheduling and caches: which tokens are computed when, and where their keys, values and states live.

    engine = Engine(backend, EngineConfig())       # plans and allocates
    request_id = engine.add_request(token_ids, SamplingParams())
    while engine.has_work:
        for event in engine.step():                # one forward pass
            ...

The engine knows tokens, blocks and slots. Text belongs to `sterna.chat`, and `sterna.llm` joins the two.
"""
