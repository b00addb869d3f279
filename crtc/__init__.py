"""crtc: multimodal language models with fewer tokens, without losing what the tokens say."""

from crtc.compression import compress as compress
from crtc.compression import compressed as compressed
from crtc.methods import catalogue as catalogue
from crtc.methods import get_method as get_method
from crtc.tokens import Plan as Plan
from crtc.tokens import Tokens as Tokens
from crtc.tokens import apply as apply

__version__ = "0.1.0"
