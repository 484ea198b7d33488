"""Where engines keep what they compile on the device."""

ENGINE_CACHE = "EDGEKIT_ENGINE_CACHE"
"""Environment variable: a folder for it; the agent names one."""
