"""crtc: multimodal language models with fewer tokens, without losing what the tokens say."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from crtc.compression import compress as compress
    from crtc.compression import compressed as compressed
    from crtc.methods.catalogue import catalogue as catalogue
    from crtc.methods.catalogue import get_method as get_method
    from crtc.methods.catalogue import trained as trained
    from crtc.tokens import Plan as Plan
    from crtc.tokens import Tokens as Tokens
    from crtc.tokens import apply as apply
else:
    _HOMES = {
        "crtc.compression": ("compress", "compressed"),
        "crtc.methods.catalogue": ("catalogue", "get_method", "trained"),
        "crtc.tokens": ("Plan", "Tokens", "apply"),
    }

    __all__ = ("__version__", *(name for names in _HOMES.values() for name in names))

    def __dir__() -> list[str]:
        """What the package offers, asked for or not."""
        return sorted({*globals(), *__all__})

    def __getattr__(name: str) -> Any:
        """Imported when asked for: vLLM loads the plug-in in all its processes, whatever they serve."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
