"""A list of parameters that grows by the task and comes back at its grown length from a checkpoint."""

import torch
from torch import nn


class GrowingParameters(nn.ParameterList):
    """`nn.ParameterList` whose missing entries are appended when a longer list is loaded."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        device = next((p.device for p in self), None)
        while (saved := state_dict.get(f"{prefix}{len(self)}")) is not None:
            self.append(nn.Parameter(torch.empty_like(saved, device=device or saved.device)))
        super()._load_from_state_dict(state_dict, prefix, *args)
