"""An external sort of encoded records by the hash of their ids."""
