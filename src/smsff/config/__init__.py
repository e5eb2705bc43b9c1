"""What a configuration may say, and how a command line becomes one."""
