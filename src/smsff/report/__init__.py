"""Reports on runs and comparisons: one HTML file that needs nothing else, and Markdown."""
