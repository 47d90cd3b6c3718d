"""How well clusters of two modalities find one another, by every clusterer and matcher."""
