"""A plug-in of vLLM: LLaVA served with fewer visual tokens.

vLLM counts the placeholders of a prompt before it encodes the image, and keeps encoded images for later prompts. So how
many tokens stay is known from the image's size alone, and a method cannot look at the question. Its attention takes no
mass, and positions are numbered anew: what is served is what the model says in
`crtc.compressed(..., mass=False, positions="repack")`.

    vllm serve llava-hf/llava-1.5-7b-hf --hf-overrides
        '{"architectures": ["CrtcLlavaForConditionalGeneration"], "crtc": {"method": "kmeans", "count": 64}}'

vLLM imports this file in all its processes, whatever they serve, so it imports nothing.
"""

ARCHITECTURE = "CrtcLlavaForConditionalGeneration"


def register() -> None:
    """Tell vLLM of the architecture; called by vLLM through the entry point of the package, any number of times."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"crtc.plugins.vllm_llava:{ARCHITECTURE}")
