"""Tables, figures and the page, regenerated from run records alone."""
