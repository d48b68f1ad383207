"""The bytes of a meta file: where its lines are, kept in an index beside it."""
