"""How a counterpart is run: what its process has in its environment, and whose linear layers."""

# Both are read when torch and timm start, so that each contestant is a process of its own.
FUSED_ATTENTION, HUGE_PAGES, LINEAR = "TIMM_FUSED_ATTN", "THP_MEM_ALLOC_ENABLE", "ELSA_LINEAR"
SETTINGS = {
    "plain": "as it comes",
    "best": f"{FUSED_ATTENTION}=2 and huge pages",
    "linear": "the same with our linear layers",
}
