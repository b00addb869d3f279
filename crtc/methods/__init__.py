"""The catalogue: one file per method, one export line here; everything else finds them by themselves."""

from crtc.methods.method import Method as Method
from crtc.methods.method import ScoreMethod as ScoreMethod
from crtc.methods.random import Random as Random
