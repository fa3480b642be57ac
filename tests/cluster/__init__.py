"""What a service past one machine is made of, on loopback: two PostgreSQL servers, nodes, a load balancer."""
