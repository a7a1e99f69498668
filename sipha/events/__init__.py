"""What happens on a node and in its log, told to who asks: as it comes, and of each AOR afterwards."""
