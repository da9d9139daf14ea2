"""Networks that gnomon trains or makes itself: `from gnomon.studies import critical_mlp`."""

from gnomon.studies.critical import critical_mlp as critical_mlp
