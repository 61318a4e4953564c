"""What a caller may do: plans, the order of checks, inputs."""
