"""One file per profile: what is sent, and which metrics come out."""
