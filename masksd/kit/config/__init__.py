"""Everything a training run needs to know, and how it ends early."""

from masksd.kit.config.errors import TrainingError as TrainingError
from masksd.kit.config.errors import TrainingStopped as TrainingStopped
from masksd.kit.config.pretrain import PretrainConfig as PretrainConfig
from masksd.kit.config.train import TrainConfig as TrainConfig
from masksd.kit.data_config import DataConfig as DataConfig
from masksd.kit.data_config import cache_folder as cache_folder
