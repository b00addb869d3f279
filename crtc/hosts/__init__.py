"""Stock Hugging Face models, in and out; the only home of `transformers` beside tasks and training."""

from crtc.hosts.llava import Encoded as Encoded
from crtc.hosts.llava import Positions as Positions
from crtc.hosts.llava import check_model as check_model
from crtc.hosts.llava import columns as columns
from crtc.hosts.llava import encode as encode
from crtc.hosts.llava import generate as generate
from crtc.hosts.llava import shorten as shorten
