"""Files, folders, pictures, films, checkpoints and progress: everything that touches the disk or the terminal."""
