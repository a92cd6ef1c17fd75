"""Complete training runs, each a package: networks, data, training, and a README with the results."""
