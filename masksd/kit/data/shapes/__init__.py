"""The shapes data set: procedural images with referring expressions, in refer format."""

from masksd.kit.data.shapes.build import ShapesConfig as ShapesConfig
from masksd.kit.data.shapes.build import build_shapes as build_shapes
from masksd.kit.data.shapes.build import shapes_config as shapes_config
from masksd.kit.data.shapes.build import shapes_folder as shapes_folder
from masksd.kit.data.shapes.expressions import shapes_vocabulary as shapes_vocabulary
