"""One file per kind of server, behind one Protocol (:mod:`pytest_llmbench.backends.base`)."""
