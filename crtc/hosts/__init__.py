"""Stock Hugging Face models, in and out; the only home of `transformers` beside tasks and training."""

from crtc.hosts.family import CACHE as CACHE
from crtc.hosts.family import cache_of as cache_of
from crtc.hosts.family import check_model as check_model
from crtc.hosts.generation import Turn as Turn
from crtc.hosts.generation import answer as answer
from crtc.hosts.generation import check_cache as check_cache
from crtc.hosts.generation import generate as generate
from crtc.hosts.generation import go_on as go_on
from crtc.hosts.inside import Cuts as Cuts
from crtc.hosts.inside import cut_inside as cut_inside
from crtc.hosts.layers import decoder_layers as decoder_layers
from crtc.hosts.look import question_attention as question_attention
from crtc.hosts.mass import check_attention as check_attention
from crtc.hosts.positions import Positions as Positions
from crtc.hosts.positions import check_positions as check_positions
from crtc.hosts.prompt import columns as columns
from crtc.hosts.prompt import encoder_outputs as encoder_outputs
from crtc.hosts.prompt import shorten as shorten
from crtc.hosts.vlm import Encoded as Encoded
from crtc.hosts.vlm import encode as encode
