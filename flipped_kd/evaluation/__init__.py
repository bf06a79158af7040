"""From scores to metrics: match scores, comparisons of systems, rankings, mistakes, plots."""
