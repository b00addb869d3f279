"""Reinforcement: seed, propagate, inhibit."""

from crtc.reinforcement.inhibition import inhibit as inhibit
from crtc.reinforcement.inhibition import redundancy as redundancy
from crtc.reinforcement.propagation import Propagation as Propagation
from crtc.reinforcement.propagation import edge_softmax as edge_softmax
from crtc.reinforcement.propagation import propagate as propagate
