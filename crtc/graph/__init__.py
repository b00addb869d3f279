"""The similarity graph over text and visual tokens."""

from crtc.graph.neighbors import Neighbors as Neighbors
from crtc.graph.neighbors import feature_neighbors as feature_neighbors
from crtc.graph.neighbors import grid_neighbors as grid_neighbors
from crtc.graph.neighbors import join as join
from crtc.graph.neighbors import text_image as text_image
from crtc.graph.neighbors import text_order as text_order
from crtc.graph.radius import Edges as Edges
from crtc.graph.radius import edge_degree as edge_degree
from crtc.graph.radius import edge_matvec as edge_matvec
from crtc.graph.radius import neighbor_edges as neighbor_edges
from crtc.graph.radius import radius_edges as radius_edges
from crtc.graph.token_graph import from_data as from_data
from crtc.graph.token_graph import to_data as to_data
from crtc.graph.token_graph import to_networkx as to_networkx
from crtc.graph.token_graph import token_graph as token_graph
