"""Pure functions on arrays: bootstrap intervals, rankings of classes, exact nearest neighbours."""
