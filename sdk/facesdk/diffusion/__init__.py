"""Diffusion: schedules, samplers, prompts and face tokens; numpy on the host, networks as engines."""
