"""The catalogue: one file per method, one export line here; everything else finds them by themselves."""

from crtc.methods.catalogue import catalogue as catalogue
from crtc.methods.catalogue import get_method as get_method
from crtc.methods.cls_attention import ClsAttention as ClsAttention
from crtc.methods.cross_modal_similarity import CrossModalSimilarity as CrossModalSimilarity
from crtc.methods.divprune import DivPrune as DivPrune
from crtc.methods.gprune import GPrune as GPrune
from crtc.methods.kmeans import KMeans as KMeans
from crtc.methods.method import Method as Method
from crtc.methods.method import ScoreMethod as ScoreMethod
from crtc.methods.personalized_page_rank import PersonalizedPageRank as PersonalizedPageRank
from crtc.methods.pool import Pool as Pool
from crtc.methods.random import Random as Random
from crtc.methods.reinforced import Reinforced as Reinforced
from crtc.methods.tome import ToMe as ToMe
from crtc.methods.uniform_grid import UniformGrid as UniformGrid
from crtc.methods.visionzip import VisionZip as VisionZip
