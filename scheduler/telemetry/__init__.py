"""Those who look on at the work: metrics and traces. Each loads its library only when it is wanted."""
