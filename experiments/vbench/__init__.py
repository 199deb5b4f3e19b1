"""VBench scores of clips: exports for the public package, and its results in our tables."""
