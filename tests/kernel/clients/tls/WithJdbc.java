// PostgreSQL's JDBC driver over TLS: WithJdbc N. TLS is written in Java, in the virtual machine's own memory.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

public class WithJdbc {
	private static final String INSERT = "INSERT INTO tls_capture (id, client, note) VALUES (?, ?, ?)";

	private static Connection open() throws SQLException {
		String url = String.format("jdbc:postgresql://%s:%s/%s?user=%s&sslmode=%s", System.getenv("PGHOST"),
			System.getenv("PGPORT"), System.getenv("PGDATABASE"), System.getenv("PGUSER"),
			System.getenv("PGSSLMODE"));
		return DriverManager.getConnection(url);
	}

	private static void insert(Connection connection, int number, String note) throws SQLException {
		try (PreparedStatement statement = connection.prepareStatement(INSERT)) {
			statement.setInt(1, number);
			statement.setString(2, "jdbc");
			statement.setString(3, note);
			statement.executeUpdate();
		}
	}

	private static void read(Connection connection, String name, int count) throws SQLException {
		for (int number = 0; number < 5; number++) {
			String text = "SELECT n, '" + name + " row ' || n FROM generate_series(1, " + (3000 + number) + ") AS n";
			int rows = 0;
			try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(text)) {
				while (result.next())
					rows++;
			}
			if (rows != 3000 + number)
				throw new IllegalStateException(rows + " rows: " + text);
		}
		// From the fifth time on the driver prepares it at the server.
		try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int + 1, 'jdbc prepared'")) {
			for (int number = 0; number < count; number++) {
				statement.setInt(1, number);
				statement.executeQuery().close();
			}
		}
	}

	private static void large(Connection connection, String name) throws SQLException {
		StringBuilder body = new StringBuilder();
		for (int number = 0; number < 128 * 1024; number++)
			body.append(String.format("%s%06d,", name, number));
		try (Statement statement = connection.createStatement()) {
			statement.executeQuery("SELECT length('" + body + "')").close();
		}
	}

	private static void fail(Connection connection, String name) throws SQLException {
		try (Statement statement = connection.createStatement()) {
			try {
				statement.execute("SELECT 1/0 AS jdbc_" + name);
			} catch (SQLException e) {
				if (!"22012".equals(e.getSQLState()))
					throw e;
			}
			connection.setAutoCommit(false);
			insert(connection, -1, "rolled back by " + name);
			connection.rollback();
			connection.setAutoCommit(true);
			statement.execute("SELECT 'jdbc after the rollback of " + name + "'");
		}
	}

	public static void main(String[] args) throws SQLException {
		int count = Integer.parseInt(args[0]);
		try (Connection one = open(); Connection two = open()) {
			for (int number = 0; number < count; number++)
				insert(number % 2 == 0 ? one : two, number, "jdbc note " + number);
			for (Connection connection : new Connection[] { one, two }) {
				String name = connection == one ? "a" : "b";
				read(connection, name, count);
				large(connection, name);
				fail(connection, name);
			}
		}
	}
}
