"""What arbitrary bytes may not do: one file each for the parts of this package that read what strangers send."""
