"""Methods beside each other on the same photos, in one table, and the study of which of them people prefer."""
