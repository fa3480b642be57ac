"""What breaks the machine under a store: kills, power cuts, full and failing disks, damaged files, lost messages."""
