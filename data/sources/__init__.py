"""What is no text of lines, read as if it were: class folders, tars, Parquet files."""
