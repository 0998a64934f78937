"""Who looks on at the work and tells others of it. Each part loads its library only when it is wanted."""
