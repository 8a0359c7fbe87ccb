"""Values that the host keeps between evaluations of one run and that depend on the LoRA's strengths."""


def forget_cached_values(options: dict, changed: bool) -> None:
    """Make the host compute anew what it keeps of earlier evaluations, where the strengths reach it.

    `options` are the transformer_options of an evaluation; `changed` says whether the strengths differ from
    those of the evaluation before. Without this the kept values would hold the early strengths to the end.
    """
    for cache in (options.get("ar_state") or {}).get("crossattn_caches") or ():
        # Keys and values of the text in a causal model: two small products, so that every evaluation calls
        # all linears of the block.
        cache["is_init"] = False
    poses = options.get("animate2_cache")
    if poses is not None and changed:
        # Inputs of each block for Animate-2's pose video, which pass through the LoRA of the blocks before.
        poses.free()
