"""The fleet's web page: Flower with pages of our own. Only this package imports Flower."""
