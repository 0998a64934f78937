"""What retrieval finds: recall@k by words, by meaning, and by both."""
