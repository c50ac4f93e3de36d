"""Everything that is looked at: camera paths, pictures and their colours, videos, the report of a run."""
