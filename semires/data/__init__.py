"""From annotation files to samples: readers, splits, the embedded data set, views."""
