"""The parameters that begin to learn later (`optim.thaw`): whether they ask for gradients follows from the step."""

import logging

from torch import nn

from core.optim import OptimConfig, is_thawed
from core.parameters import late_parameters

logger = logging.getLogger(__name__)


class Thawing:
    """Of one model, whose parameters are frozen already where they never learn."""

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        self._model, self._optim = model, optim
        self._late = [] if optim.thaw is None else late_parameters(model, optim.thaw)

    def begin_step(self, step: int) -> bool:
        """Make ready for the update that follows `step` updates; whether anything changed."""
        if not self._late or self._late[0].requires_grad == is_thawed(self._optim, step):
            return False
        for parameter in self._late:
            parameter.requires_grad_(not parameter.requires_grad)
        trained = sum(parameter.numel() for parameter in self._model.parameters() if parameter.requires_grad)
        logger.info("update %d trains %s parameters (optim.thaw)", step + 1, f"{trained:,}")
        return True
