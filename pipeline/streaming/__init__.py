"""Raw records that keep arriving become commits: in rounds, each of which reads what is new since the last one."""
