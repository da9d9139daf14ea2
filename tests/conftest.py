"""Types and array shapes of gnomon.numerics and gnomon.theory are checked while the tests run, and only then."""

import jaxtyping

# Before any test imports what is to be checked.
jaxtyping.install_import_hook(("gnomon.numerics", "gnomon.theory"), "checking.checked")
