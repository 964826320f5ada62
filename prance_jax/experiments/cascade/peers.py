"""Other cascades in the workdir of a run, on its dense network and with its teacher."""

from __future__ import annotations

import dataclasses

from prance_jax.config.cascade import PeerConfig
from prance_jax.experiments.cascade.stages import CascadeStages
from prance_jax.spec.cascade import Cascade


class PeerStages(CascadeStages):
    """A cascade with the looks of `cascade.peers`, without a selector: stage three is under random routing.

    It shares the data, the dense network and the files of the run.
    """

    skips_looks = False

    def __init__(self, run: CascadeStages, peer: PeerConfig):
        """Takes everything but the looks from a run.

        Args:
          run: the run.
          peer: name and looks.
        """
        settings = dataclasses.replace(run.settings, looks=peer.looks, rounds=0, peers=())
        self.config = dataclasses.replace(run.config, cascade=settings)
        self.folder, self.is_elastic = f"peers/{peer.name}", peer.is_elastic
        self.workdir, self.progress, self.train = run.workdir, run.progress, run.train
        self.source, self.mesh, self.metrics = run.source, run.mesh, run.metrics
        self._finished, self._teacher = run._finished, run._teacher

    def decision_cost(self, cascade: Cascade) -> int:
        """Returns 0: comparing a probability with a threshold needs no MACs.

        Args:
          cascade: not used.
        """
        return 0
