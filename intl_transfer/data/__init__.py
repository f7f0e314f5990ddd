"""Views, data sets and loaders."""
