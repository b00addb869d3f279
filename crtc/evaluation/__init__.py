"""Retention of methods on a task, through a host, at matched true counts."""

from crtc.evaluation.evaluate import Evaluation as Evaluation
from crtc.evaluation.evaluate import Results as Results
from crtc.evaluation.parts import weights_digest as weights_digest
