"""Watch a training: `from gnomon.hooks import Watch`."""

from gnomon.hooks.watch import Watch as Watch
